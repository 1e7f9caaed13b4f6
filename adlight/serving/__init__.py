"""A detector behind a page and a JSON endpoint."""
