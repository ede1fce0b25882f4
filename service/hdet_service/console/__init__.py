"""The console: server-rendered pages that people look at. It reads, and changes nothing but its own login."""
