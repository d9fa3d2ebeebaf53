"""What happens to text: one module a stage, one module a source. Nothing here knows Ray."""
