"""The command line `hdet`: what people type, and the pages and pictures that it draws."""
