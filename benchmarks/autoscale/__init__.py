"""Simulates the autoscaling of the Kubernetes manifests on a day's load, without a cluster.

manifest.py   parses the manifests             hpa.py, keda.py   reimplement the decisions of Kubernetes and KEDA
load.py       generates a bursty day           model.py          simulates a fleet of workers
sweep.py      compares settings                real.py           runs the load on real workers, faster than real time
chart.py      draws SVG                        page.py           formats docs/autoscaling.md
"""
