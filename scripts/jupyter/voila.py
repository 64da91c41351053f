"""What voila reads: the same as Jupyter's server, and who may see the page.

As it comes voila gives each GET a kernel of its own, whoever asks, and keeps it. Any web page that the reader opens could
ask for some thousands. Here a request needs the token of the address that is opened, and an address of this machine as
its Host; a kernel whose page is gone ends.
"""

import threading
import webbrowser

from tornado.httputil import url_concat
from voila.app import Voila

load_subconfig("jupyter_server_config.py")  # noqa: F821 - jupyter gives it

c = get_config()  # noqa: F821 - jupyter gives it
c.Voila.auto_token = True
c.Voila.tornado_settings = {"allow_remote_access": False}
c.IdentityProvider.cookie_options = {"samesite": "Strict"}  # other pages' requests come without it
c.MappingKernelManager.cull_idle_timeout = 120  # seconds; cull_connected stays off, so that what is looked at lives
c.MappingKernelManager.cull_interval = 30


def launch_browser(self):
    """Open the address with its token, which voila's own way leaves out; in a thread, since some browsers are waited for."""
    try:
        browser = webbrowser.get(self.browser or None)
    except webbrowser.Error as error:
        self.log.warning("No web browser found: %s.", error)
        return
    address = url_concat(self.connection_url, {"token": self.identity_provider.token})
    threading.Thread(target=browser.open, args=(address, self.webbrowser_open_new), daemon=True).start()


Voila.launch_browser = launch_browser
