"""What is decided about hosts, from their facts and the settings. Pure: no files, no clock, no network."""
