"""The node people run: configuration, HTTP API, client, command line."""
