"""Writes down, for each message that the server sends about a kernel, whether the connection waits before it sends (test_servers.py)."""

import os
import socket

from tornado.websocket import WebSocketHandler

_write_message = WebSocketHandler.write_message


def write_message(self, message, binary=False):
    if self.request.path.endswith("/channels") and self.ws_connection is not None:
        prompt = self.ws_connection.stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with open(os.environ["LORA_KIT_PROBE"], "a") as file:
            file.write("at once\n" if prompt else "later\n")
    return _write_message(self, message, binary)


WebSocketHandler.write_message = write_message
