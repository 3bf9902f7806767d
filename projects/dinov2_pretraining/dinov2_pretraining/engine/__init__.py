"""What happens between steps: schedules, parameter groups, teacher, collapse numbers, export."""
