"""What every HTTP server of this project checks of a request before anybody looks at what it says.

Size, time, nesting, UTF-8, encodings, `Host` and `Origin`. It imports nothing of the servers that stand behind it.

protocol   the socket: how large a request's head may be, and how long head and body may take
guard      ASGI: the head again, for servers without the protocol; and who may call, by `Host` and `Origin`
body       reading a body: size, time, encoding
text       JSON: nesting and UTF-8; numbers
"""

from httpguard.body import read_body
from httpguard.guard import LOOPBACK, Guard, check_caller, check_head
from httpguard.limits import Limits
from httpguard.refusal import Refusal, in_openais_words
from httpguard.text import check_json, whole_number

__all__ = [
    "LOOPBACK", "Guard", "Limits", "Refusal", "check_caller", "check_head", "check_json", "in_openais_words",
    "read_body", "whole_number",
]  # fmt: skip
