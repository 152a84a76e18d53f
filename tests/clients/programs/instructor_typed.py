"""instructor: a typed answer by its default mode, and as a stream of partial ones."""

import json
import os

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Place(BaseModel):
    city: str


client = instructor.from_openai(OpenAI())
asked = {"model": os.environ["MODEL"], "messages": [{"role": "user", "content": "Where?"}]}
typed = client.create(response_model=Place, **asked)
partial = list(client.create_partial(response_model=Place, **asked))
print(json.dumps({"typed": typed.city, "partial": partial[-1].city}))
