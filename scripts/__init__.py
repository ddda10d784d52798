"""What is around the six files: data formats, converters, reports, other criteria, the makers of base/ and legal.jsonl."""
