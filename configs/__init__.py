"""The recipes, as YAML files."""
