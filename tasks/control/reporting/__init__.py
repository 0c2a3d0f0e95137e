"""What a run tells: live progress, one table in the end, reports/last.json, and a page for the change ticket."""
