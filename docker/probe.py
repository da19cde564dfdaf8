"""Whether the server on a port of this container is ready: the images' HEALTHCHECK, as they hold no curl.

`python -IS probe.py PORT` asks for /readyz and ends with 0 when the answer is 200, else with 1 and the reason. A port
with TLS is asked with TLS, and may show any certificate, as it is this container's own.
"""

import http.client
import ssl
import sys

_SECONDS = 2.0


def main() -> None:
    """Asks once."""
    port = int(sys.argv[1])
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        try:
            status, reason = _ask(http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS))
        except (http.client.BadStatusLine, ConnectionResetError):  # what a port with TLS does
            status, reason = _ask(http.client.HTTPSConnection("127.0.0.1", port, timeout=_SECONDS, context=context))
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"not ready: {error}")
    if status != http.client.OK:
        sys.exit(f"not ready: {status} {reason}")


def _ask(connection: http.client.HTTPConnection) -> tuple[int, str]:
    connection.request("GET", "/readyz")
    answer = connection.getresponse()
    return answer.status, answer.read(2000).decode(errors="replace").strip()


if __name__ == "__main__":
    main()
