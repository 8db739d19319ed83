"""What a schema cannot say of the admin API's requests: what is generated is bent towards it.

Loaded by schemathesis (tests/schemathesis.sh).
"""

import base64
import itertools
import re
from datetime import datetime
from urllib.parse import quote, unquote

import schemathesis
import urllib3.util.connection as connection

# Wrong tokens are throttled by address. Each connection comes from another one of this machine's,
# so that the check for ignored authentication does not shut out everything that follows.
_connect = connection.create_connection
_places = itertools.count()


def _from_another_place(address, timeout=None, source_address=None, socket_options=None):
    place = next(_places)
    source = f"127.{1 + place % 250}.{place // 250 % 250}.1"
    return _connect(address, timeout, (source, 0), socket_options)


connection.create_connection = _from_another_place


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """An address is written without a prefix, or with the one that identities have.

    A value may come percent-encoded. Only what has to be changed is touched: whatever is, is judged
    anew, whether it was meant to be right or wrong.
    """
    given = (path_parameters or {}).get("id")
    if isinstance(given, str):
        identity = given if ":" in given else unquote(given)
        bent = re.sub(r"^(ip:[0-9.]+)/[0-9]{1,2}$", r"\1", identity)
        bent = re.sub(r"^(ip:.*:.*)/[0-9]{1,3}$", r"\1/64", bent)
        if bent != identity:
            path_parameters["id"] = bent if ":" in given else quote(bent, safe="")
    return path_parameters


@schemathesis.hook
def before_call(context, case, kwargs):
    """A tier is one of the policy's, what ends ends in time to come; days begin every period."""
    query = case.query or {}
    for name in ("from", "to"):
        if isinstance(query.get(name), str) and len(query[name]) in (10, 16, 20):
            query[name] = query[name][:10]
    if isinstance(query.get("after"), str):
        query["after"] = base64.b64encode(b"29000000\0user:1\0free\0other").decode().rstrip("=")
    body = case.body
    if isinstance(body, dict):
        if isinstance(body.get("tier"), str) and body["tier"]:
            body["tier"] = "Premium"
        if isinstance(body.get("until"), str):
            try:
                datetime.fromisoformat(body["until"].upper())
            except ValueError:
                pass
            else:
                body["until"] = "9996" + body["until"][4:]
