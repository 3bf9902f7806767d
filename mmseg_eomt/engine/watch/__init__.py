"""What watches a run: values that are not finite, weights that differ, speed."""
