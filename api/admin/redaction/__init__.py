"""A dry run of the redaction."""
