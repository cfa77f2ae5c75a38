"""The pages, plots and pictures that a person looks at."""
