"""What every other part may ask: checks of values, imports, devices, the world of processes, signs and colours."""
