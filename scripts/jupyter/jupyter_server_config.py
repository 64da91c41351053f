"""Jupyter's server as `make lab` starts it: a kernel's messages go to the browser at once.

As it comes, the server leaves Nagle's algorithm on: tornado switches it back on after a page's first answer. For each move of a
slider a kernel sends several small messages, and the second then waits until the browser has acknowledged the first, which it
puts off by 40 ms, above all while a slider is dragged.
"""

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection


class PromptConnection(ZMQChannelsWebsocketConnection):
    """A kernel's connection to the browser, without Nagle's algorithm."""

    def connect(self):
        self.websocket_handler.set_nodelay(True)
        return super().connect()


c = get_config()  # noqa: F821 - jupyter gives it
c.ServerApp.kernel_websocket_connection_class = PromptConnection
