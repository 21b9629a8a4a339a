"""What was used: the sums of the ledger, in OpenAI's form and in our own, and statements of projects."""
