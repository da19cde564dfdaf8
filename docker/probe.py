"""Whether the server on a port of this container is ready: the images' HEALTHCHECK, as they hold no curl.

`python -IS probe.py PORT` asks for /readyz and ends with 0 when the answer is 200, else with 1 and the reason.
"""

import http.client
import sys

_SECONDS = 2.0


def main() -> None:
    """Asks once."""
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=_SECONDS)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        reason = answer.read(2000).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"not ready: {error}")
    if answer.status != http.client.OK:
        sys.exit(f"not ready: {answer.status} {reason}")


if __name__ == "__main__":
    main()
