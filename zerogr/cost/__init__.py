"""What an index would cost: rates that were measured, the work that a configuration asks for, and their quotient."""
