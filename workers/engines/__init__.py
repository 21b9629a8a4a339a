"""The engines, behind the protocol in `workers.engines.base`."""
