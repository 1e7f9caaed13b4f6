"""Tables and a page over many runs. Reading order: rows, collect, reference, grouping, tables, figures, page."""
