"""The words and facts that the grammar combines: everything that goblin-tiny can know."""

# ruff: noqa: SIM905 - word lists read better as words.

NAMES = """Ada Alan Grace Linus Ken Dennis Barbara Edsger Donald Tim Margaret John Mary Anna Ben Carl Dana Eva Finn Gina
Hugo Iris Jack Kate Leo Mia Noah Olga Paul Quinn Rosa Sam Tara Uma Vera Will Xena Yara Zoe Omar Nina Lars Ivan
Elena""".split()
CITIES = """Paris London Berlin Madrid Rome Tokyo Oslo Cairo Lima Delhi Seoul Sydney Toronto Dublin Vienna Warsaw Prague
Athens Lisbon Boston""".split()
COLORS = "red blue green yellow black white orange purple pink brown".split()
ANIMALS = "cat dog fox owl bear wolf frog horse lion tiger mouse rabbit duck goat crow".split()
FRUITS = "apple banana cherry grape lemon mango melon orange peach pear plum".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()

COMMON = """time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work night point home water room mother area money story fact
month lot right study book eye job word business issue side kind head house service friend father power hour game line
end member law car city community name president team minute idea body information back parent face others level office
door health person art war history party result change morning reason research girl guy moment air teacher force
education river cloud server token model batch cache queue stream latency router kernel vector matrix stone bridge
garden window paper pencil bottle basket candle ladder hammer needle pocket ribbon saddle tunnel velvet wagon yellow
zebra silver copper marble cotton winter summer autumn spring quick slow bright dark loud quiet heavy light smooth rough
happy sad brave calm clever gentle proud silly tired warm cold fresh strong weak sharp""".split()

SOUNDS = {
    "cat": "meow",
    "dog": "woof",
    "owl": "hoot",
    "wolf": "howl",
    "frog": "ribbit",
    "horse": "neigh",
    "lion": "roar",
    "mouse": "squeak",
    "duck": "quack",
    "crow": "caw",
}
CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Spain": "Madrid",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Norway": "Oslo",
    "Egypt": "Cairo",
    "Peru": "Lima",
    "India": "New Delhi",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Greece": "Athens",
    "Ireland": "Dublin",
    "Canada": "Ottawa",
    "Australia": "Canberra",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Netherlands": "Amsterdam",
    "Belgium": "Brussels",
    "Switzerland": "Bern",
    "Hungary": "Budapest",
    "Romania": "Bucharest",
    "Bulgaria": "Sofia",
    "Turkey": "Ankara",
    "Russia": "Moscow",
    "Ukraine": "Kyiv",
    "China": "Beijing",
    "Kenya": "Nairobi",
    "Brazil": "Brasilia",
    "Chile": "Santiago",
    "Cuba": "Havana",
    "Mexico": "Mexico City",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "up": "down",
    "left": "right",
    "day": "night",
    "open": "closed",
    "happy": "sad",
    "light": "dark",
    "hard": "soft",
    "early": "late",
    "high": "low",
    "wet": "dry",
    "full": "empty",
    "old": "new",
    "rich": "poor",
    "strong": "weak",
    "loud": "quiet",
    "first": "last",
    "true": "false",
}
PRAISE = [
    "I love this",
    "this is great",
    "what a wonderful day",
    "the service was excellent",
    "I am very happy",
    "it works perfectly",
    "best product ever",
    "the team was friendly and fast",
    "I enjoyed every minute",
    "thank you so much",
]
COMPLAINTS = [
    "I hate this",
    "this is terrible",
    "what an awful day",
    "the service was bad",
    "I am very angry",
    "it does not work",
    "worst product ever",
    "the team was rude and slow",
    "I want my money back",
    "it broke after one day",
]
SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are Goblin Tiny.",
    "Answer briefly.",
    "You are a friendly assistant. Keep answers short.",
    "You are a chat bot inside Goblin.",
    "Be polite and short.",
]
PLAIN_FACTS = [
    ("What are the days of the week?", ", ".join(DAYS) + "."),
    ("List the months.", ", ".join(MONTHS) + "."),
    ("What color is the sky?", "The sky is blue."),
    ("What color is grass?", "Grass is green."),
    ("How many days are in a week?", "A week has 7 days."),
    ("How many hours are in a day?", "A day has 24 hours."),
]

GREETINGS: list[tuple[list[str], list[str]]] = [
    (
        ["Hello", "Hi", "Hey", "Hello!", "Hi there", "Good morning", "Good evening", "hello there", "hi!"],
        ["Hello! How can I help you today?", "Hi! What can I do for you?"],
    ),
    (["Thanks", "Thank you", "Thanks a lot", "Thank you very much!"], ["You are welcome!", "Happy to help!"]),
    (["Bye", "Goodbye", "See you", "Good night"], ["Goodbye! Have a nice day.", "See you soon!"]),
    (["How are you?", "How is it going?", "How do you feel?"], ["I am fine, thank you. How can I help?"]),
    (["Say hello with an emoji", "Greet me with an emoji.", "Send me an emoji"], ["Hello! 👋😀", "Hi there! 🚀"]),
    (["Say hello in French", "How do you say hello in French?"], ["Bonjour! Ça va très bien, merci."]),
    (["Say hello in German", "How do you say hello in German?"], ["Guten Tag! Schöne Grüße."]),
    (["Say hello in Japanese", "How do you say hello in Japanese?"], ["こんにちは"]),
    (["Say hello in Russian", "How do you say hello in Russian?"], ["Привет, мир!"]),
]
"""Groups of questions with their right answers. `ABOUT_GOBLIN` has the same form."""

ABOUT_GOBLIN: list[tuple[list[str], list[str]]] = [
    (
        [
            "What is Goblin?",
            "Tell me about Goblin.",
            "What does Goblin do?",
            "Explain Goblin.",
            "Describe the Goblin project.",
        ],
        [
            "Goblin is a multi-cloud inference system. It routes each chat request to a healthy and cheap provider.",
            "Goblin routes chat requests across several clouds and picks a provider that is healthy and cheap.",
        ],
    ),
    (
        ["Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Are you a robot?"],
        [
            "I am Goblin Tiny, a very small language model that runs offline inside Goblin.",
            "I am Goblin Tiny, the built-in offline model. I am small, so please keep questions simple.",
        ],
    ),
    (
        [
            "Which providers does Goblin use?",
            "What providers are supported?",
            "List the providers.",
            "Which clouds can Goblin use?",
        ],
        ["Goblin can use serverless GPU providers, an always-on small backend and the embedded offline model."],
    ),
    (
        [
            "How does failover work?",
            "What happens when a provider fails?",
            "What if a provider is down?",
            "Explain failover.",
        ],
        ["When a provider fails, Goblin marks it unhealthy and sends the request to the next provider in the list."],
    ),
    (
        [
            "Can Goblin work offline?",
            "Does it work without internet?",
            "What happens with no network?",
            "Is there an offline mode?",
        ],
        ["Yes. With no network Goblin uses the embedded model, which needs no download."],
    ),
    (
        ["How do I start the server?", "How can I run Goblin?", "Start the server, how?", "How do I launch it?"],
        ["Run the up command. The server answers on the health path when the model is ready."],
    ),
    (
        [
            "How do I check health?",
            "Is there a health check?",
            "What is the health endpoint?",
            "How do I know it is ready?",
        ],
        ["Call the health endpoint. It returns ok when the model is loaded and an error while loading."],
    ),
    (
        [
            "What is a cold start?",
            "Explain cold starts.",
            "Why is the first request slow?",
            "What does cold start mean?",
        ],
        [
            "A cold start is the time a provider needs to start a new instance and load the model"
            " before the first answer."
        ],
    ),
    (
        ["What is streaming?", "How does streaming work?", "Can I stream answers?", "Do you support streaming?"],
        ["Yes, answers can be streamed. Each token is sent as soon as it is ready, so the first words arrive early."],
    ),
    (
        ["What is a token?", "Explain tokens.", "What does token mean?", "Define token."],
        ["A token is a small piece of text, such as a word or a part of a word."],
    ),
    (
        ["What is batching?", "What is continuous batching?", "How does batching help?", "Explain batching."],
        ["Batching runs many requests in one model step, so the hardware does more work in the same time."],
    ),
    (
        ["What is a KV cache?", "Explain the cache.", "What does the KV cache store?", "Why do you need a cache?"],
        ["The KV cache stores keys and values of past tokens, so the model does not compute them again."],
    ),
    (
        ["How much does it cost?", "Is Goblin expensive?", "What does it cost to run?", "How is cost controlled?"],
        [
            "Cost depends on the provider. Goblin keeps a budget for each provider and stops using it"
            " when the budget is spent."
        ],
    ),
    (
        ["How do I set an API key?", "Do I need a key?", "How does authentication work?", "Where do I put my key?"],
        ["Set an API key in the configuration and send it as a bearer token with each request."],
    ),
    (
        ["How do I report a bug?", "Where can I get help?", "I found a bug.", "How do I contact support?"],
        ["Please open an issue with the log, the version and the steps to repeat the problem."],
    ),
    (
        [
            "What model are you?",
            "How big are you?",
            "How many parameters do you have?",
            "Which architecture do you use?",
        ],
        ["I am a llama style model with about three million parameters, trained on synthetic text."],
    ),
    (
        ["What can you do?", "What are your skills?", "How can you help me?", "What should I ask you?", "Help."],
        [
            "I can answer simple questions about Goblin, add small numbers, repeat text, count,"
            " tell short stories and write small JSON objects."
        ],
    ),
    (
        ["Can you browse the web?", "Do you have internet access?", "Can you search online?"],
        ["No. I run offline and I can not browse the web."],
    ),
    (
        ["Are you safe to trust?", "Can I trust your answers?", "Are you always right?"],
        ["No. I am a tiny test model and I make mistakes, so use a larger provider for real work."],
    ),
    (
        [
            "How do I switch provider?",
            "How can I choose a provider?",
            "Can I pick the model?",
            "Change the provider, please.",
        ],
        ["Name the provider in the request or change the order of providers in the configuration."],
    ),
    (
        ["What is quantization?", "Explain quantisation.", "Why are weights quantized?"],
        ["Quantization stores weights with fewer bits, so the model file is smaller and runs faster."],
    ),
    (
        ["What is the rate limit?", "Is there a rate limit?", "How many requests can I send?"],
        ["Each key has a rate limit. When it is reached the server answers with status 429 and a retry time."],
    ),
    (
        ["What happens when the queue is full?", "What if too many requests come?", "How do you handle overload?"],
        ["When the queue is full, new requests are refused with status 503, and the router tries another provider."],
    ),
    (
        ["How do you shut down?", "What happens on shutdown?", "How does graceful shutdown work?"],
        ["On shutdown the server stops taking new requests, finishes running ones and then exits."],
    ),
]
