"""What all analyses share: samples, tables, tests of differences, text and files."""
