"""Run a part of a forward pass again; knows neither faults nor sites."""
