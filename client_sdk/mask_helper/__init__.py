"""A helper of masked runs: it tells a server the sum of clients' masks, never one mask, and of no client twice.

`MaskHelper` judges requests and makes answers, `serve` takes them from a server and gives them back. Needs the extra
[privacy].
"""

from client_sdk.mask_helper.helper import MaskHelper
from client_sdk.mask_helper.keys import HelperKeys, HelperKeyStore
from client_sdk.mask_helper.serving import serve

__all__ = ["HelperKeyStore", "HelperKeys", "MaskHelper", "serve"]
