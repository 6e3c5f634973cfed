"""Launch layouts: how many processes, what each of them holds, and in which precision."""
