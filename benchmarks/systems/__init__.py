"""What is measured, each as processes on this machine."""
