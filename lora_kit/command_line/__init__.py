"""A configuration as text, and text as a configuration: flags, shell lines, Python and YAML."""
