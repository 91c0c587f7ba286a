"""Put heads into models and take them out again."""
