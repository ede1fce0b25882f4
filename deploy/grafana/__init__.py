"""Grafana: dashboards as data, the JSON made from them, and a small renderer where no Grafana is at hand."""
