"""What voila reads: the same as Jupyter's server."""

load_subconfig("jupyter_server_config.py")  # noqa: F821 - jupyter gives it
