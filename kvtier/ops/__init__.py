"""Operations on a root: what it holds, what may go, who evicts, and the command `kvtier`."""
