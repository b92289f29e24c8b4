"""Networks and their presets: no input or output, no devices, no chunking."""
