"""The doctor: what is wrong with a configuration, before it costs a night, and with a run, after its first updates."""
