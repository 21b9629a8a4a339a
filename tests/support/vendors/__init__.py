"""Stand-ins for the servers of vendors, each written from the vendor's published contract."""
