"""Runs requests as jobs of RunPod's serverless endpoints."""
