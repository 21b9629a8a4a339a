"""The least that durability can cost: routes that commit each request to PostgreSQL, without a queue."""
