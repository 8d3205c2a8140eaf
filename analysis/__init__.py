"""Result files -> statistics, tables, figures, report. Reads files only: no torch, no other part of hoard."""
