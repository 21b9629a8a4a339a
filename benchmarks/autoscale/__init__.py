"""How many workers, and when: the manifests' autoscaling, tried on a day's load before a cluster is there.

manifest.py   what the manifests say           hpa.py, keda.py   what Kubernetes and KEDA make of it
load.py       a bursty day                     model.py          a fleet of workers, simulated, in seconds
sweep.py      which settings are best          real.py           the same on real rows, Redis and Celery workers
chart.py      SVG                              page.py           docs/autoscaling.md
"""
