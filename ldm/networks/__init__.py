"""Networks: pictures and features in, features out; they know nothing of noise."""
