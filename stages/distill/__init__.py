"""What a teacher emits and how a student meets it."""
