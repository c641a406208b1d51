"""Networks: images and features in, features out. They do not depend on the noise process."""
