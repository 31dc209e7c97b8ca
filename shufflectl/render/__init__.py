"""Results as tables for people, or as the JSON document that programs read: one file a result."""
