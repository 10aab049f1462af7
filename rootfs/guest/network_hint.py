"""Says, where a library asks for the network, that there is none and what to do instead.

The wall is the network namespace; this only makes its errors readable. Loaded when a module that opens connections is
imported.
"""

import errno

HINT = (
    "the sandbox has no network: pass the data as an input, "
    "`nsbox run --input NAME=PATH` or `nsbox.run(..., inputs={...})`"
)


def install(module):
    """Makes the connections of `socket` or `curl_cffi.curl` fail with the hint."""
    if module.__name__ == "socket":
        explain_sockets(module)
    else:
        explain_curl(module)


def explain_sockets(socket):
    """Refuses names and addresses of the internet, and leaves path sockets as they are.

    `create_connection` needs no work of its own: it resolves, then connects.
    """
    internet = (socket.AF_INET, socket.AF_INET6)
    resolve, connect, connect_ex = socket.getaddrinfo, socket.socket.connect, socket.socket.connect_ex

    def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):
        try:
            # An address in figures, or none at all, needs no network.
            return resolve(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
        except socket.gaierror:
            raise socket.gaierror(errno.ENETUNREACH, HINT) from None

    def gethostbyname(name):
        raise socket.gaierror(errno.ENETUNREACH, HINT)

    def sandbox_connect(self, address, /):
        if self.family in internet:
            raise OSError(errno.ENETUNREACH, HINT)
        return connect(self, address)

    def sandbox_connect_ex(self, address, /):
        # Its contract is to return the error's number.
        return errno.ENETUNREACH if self.family in internet else connect_ex(self, address)

    socket.getaddrinfo = getaddrinfo
    socket.gethostbyname = socket.gethostbyname_ex = gethostbyname
    socket.socket.connect = sandbox_connect
    socket.socket.connect_ex = sandbox_connect_ex


def explain_curl(curl):
    """libcurl opens its own sockets: its error is the place for the hint (yfinance uses it)."""
    make = getattr(curl.Curl, "_get_error", None)
    if make is None:
        return

    def get_error(self, code, *args):
        error = make(self, code, *args)
        # Could not resolve proxy, could not resolve host, could not connect.
        if error is not None and code in (5, 6, 7):
            error.args = (f"{error.args[0]}; {HINT}", *error.args[1:])
        return error

    curl.Curl._get_error = get_error
