"""Prometheus: recording and alerting rules as typed data, and the YAML made from them."""
