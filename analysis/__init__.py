"""Result files -> statistics, tables, figures, report. Reads files only: no torch, and of hoard only the records."""
