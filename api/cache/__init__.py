"""The response cache: repeated requests are answered with the stored events of an earlier answer."""
