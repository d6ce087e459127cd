"""What people see: progress, tables, files."""
